"""What generates traits, data sets and the embedded model's corpus."""
