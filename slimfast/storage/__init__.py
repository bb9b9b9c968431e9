"""Bytes in and out: files written whole or not at all, strict documents, weights from any format. Nothing
here knows what a network is.
"""
