"""Access control: the requests and the connections that the daemon accepts."""
