"""Train, judge and ship exact bidirectional-LSTM text classifiers."""
