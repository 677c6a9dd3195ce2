"""Open Terminal's API, below /open-terminal, for Open WebUI: each chat has a sandbox of its own.

Source: github.com/open-webui/open-terminal 0.14.5, and Open WebUI 0.12.4 as its client.
"""
