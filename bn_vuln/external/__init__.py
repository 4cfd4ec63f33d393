"""External models: any image classifier that Keras can load, what identifies it, and how it is called."""
