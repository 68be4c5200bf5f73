"""The handshake: path, origin, token, `connect`, and admission."""
