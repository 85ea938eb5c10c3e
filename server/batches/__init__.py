"""Work on batches, behind live requests."""
