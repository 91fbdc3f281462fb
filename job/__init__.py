"""The training job."""

import os

# Whatever another project has left in the environment or in keras.json: the ranks exchange TensorFlow's tensors.
os.environ["KERAS_BACKEND"] = "tensorflow"
