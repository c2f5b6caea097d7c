"""DNA at nucleotide resolution: classification, regression, causal and masked language modelling."""
