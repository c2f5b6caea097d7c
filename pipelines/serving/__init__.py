"""The parts of `longseq serve`: what a request may be, the process that runs the model, and the routes between them."""
