"""What runs on a mesh: each layer, loss, metric and network with the numbers of one device."""
