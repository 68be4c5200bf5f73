"""Real clients: the scripts that run under node, the app they talk to, and the means to run them."""
