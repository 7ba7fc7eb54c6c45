"""The forecast service: a champion behind HTTP, which follows its alias and forecasts what is waiting together."""
