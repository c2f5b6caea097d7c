"""One folder per operator: the public function, a plain reference, a fast PyTorch form, a Triton kernel."""
