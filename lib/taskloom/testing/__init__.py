"""A cluster in one thread, from one seed: simulated clock, network, crashes. For our tests, and for anybody's."""
