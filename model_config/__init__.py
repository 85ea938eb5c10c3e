"""Models as data: one folder for each model, read by server.checkpoints. No code runs from here while serving."""
