"""The HTTP server: a search by voice, or the recording of captions, on this machine or a network that is trusted."""
