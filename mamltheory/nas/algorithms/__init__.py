"""The search by pruning: read algorithm1 first, then ranking (its arithmetic), rounds (its scores), stopping."""
