"""The peers, each run as its documentation says."""
