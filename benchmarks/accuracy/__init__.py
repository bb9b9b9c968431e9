"""Accuracy of thin networks on real data: network definitions, loaders and one command per benchmark."""
