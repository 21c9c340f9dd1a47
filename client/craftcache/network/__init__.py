"""What the daemon and a worker on its own agree on when they ask an origin for anything.

From the outside in:

    exchange           one request by httpx, redirects followed by hand (metadata, a worker's bytes)
    locations          where a redirect leads
    content_encoding   whether a body is compressed
    tls                whose certificates are believed
    proxies            which proxy stands between, from the environment
    addresses          which addresses are no public ones

Neither side lets a library read proxies or ``.netrc`` from the environment by itself: libraries
differ in what they understand there, and pass over in silence what they do not.
"""
