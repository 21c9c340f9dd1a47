"""How the daemon and a worker on its own speak to the world: proxies, redirects, tokens, words."""
