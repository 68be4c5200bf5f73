"""The conformance scenarios recorded from Phoenix, their runner, and the app that they are played against."""
