"""A run of a calibration: rows, steps, measurements, what is kept, and the finished checkpoint.

`calibrating.calibrate` is the whole of it; `loop.train` is the training loop and the file to read first. Everything
that a step does is a function of the plan, the data and the step's number, so a run goes on from its last state as if
it had never stopped.
"""
