"""What a batch means, what is minimised and what is measured."""
