"""A test per failure mode of docs/reliability.md, marked `@pytest.mark.mode(number)`, where no other test proves it.

They choose their databases themselves, with `site(db=...)`: `make test` runs them once.
"""
