"""Side layer: devices, saved states, run records, progress and interruption. It knows no mathematics."""
