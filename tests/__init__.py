"""The tests of starlette_channels; `scripts/test` runs them."""
