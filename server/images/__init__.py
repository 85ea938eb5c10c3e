"""From image URLs to pictures that the model can be shown, within bounds on memory and time.

A file has one reader here, a module for each format. It checks the file's structure and writes a canonical file of
the accepted parts, and only that reaches the decoder. What leaves is what a person sees (docs/images.md).
"""

from server.images.decoder import DecodedImage, ImageDecoder, ImageLimits
from server.images.url import scheme_of

__all__ = ["DecodedImage", "ImageDecoder", "ImageLimits", "scheme_of"]
