"""What is said of features from their codes; each module is a door of its own."""
