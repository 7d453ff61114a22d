"""Studies of the scores: do they predict accuracy, do they repeat?"""
