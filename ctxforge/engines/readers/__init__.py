"""Small emulations of engines' config readers, one file an engine, each from that engine's own source."""
