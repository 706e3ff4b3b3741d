"""The curator: defines a task, hands it to a broker, and waits for the model."""
