"""What a method stands on: batches, the runtime, the step, schedules."""
