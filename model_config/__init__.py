"""Models as data: one folder for each model, read by server/profile.py. No code runs from here while serving."""
