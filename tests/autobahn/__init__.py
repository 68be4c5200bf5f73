"""The fast lane and the Autobahn testsuite: an echo for its fuzzing client, and what became of each of its cases."""
