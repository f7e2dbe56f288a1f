"""A session that is there when it is needed: opened, probed, replaced, closed when it is idle."""
