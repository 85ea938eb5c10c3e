"""What can judge a case: the local engine, and whatever else stands behind the same seam (base.py)."""
