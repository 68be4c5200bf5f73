"""What the tests with hostile clients share: a raw websocket, honest clients, mutations, and an app."""
