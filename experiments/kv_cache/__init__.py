"""Study: the KV cache in few bits."""
