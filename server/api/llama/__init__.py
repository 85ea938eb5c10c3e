"""The Llama API's dialect."""
