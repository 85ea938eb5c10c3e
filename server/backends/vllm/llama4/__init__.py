"""What vLLM needs to know of the Llama 4 network."""
