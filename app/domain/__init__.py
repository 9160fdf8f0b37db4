"""The rules of the trial: values in, values out; no input or output, no clock, no chance of its own."""
