"""Where bytes come from: the Hub, URLs, and what may be fetched."""
