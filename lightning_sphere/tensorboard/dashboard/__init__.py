"""The server side of the Sphere tab: what the page asks for, from TensorBoard's data provider."""
