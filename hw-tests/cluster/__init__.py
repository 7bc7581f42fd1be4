"""The rxe cluster: two virtual machines with Debian's kernel and a virtual wire between them."""
