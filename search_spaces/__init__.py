"""What may be varied: distributions, samplers, studies and the YAML spaces. Knows neither tasks nor the cluster."""
