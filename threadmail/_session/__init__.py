"""One guarded dialogue over one connection: who may speak, how mail gets over, how one logs in."""
