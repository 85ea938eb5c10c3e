"""From image URLs to pictures for the model, within limits on memory and time.

Each format has one reader, in its own module. It checks the file's structure and writes a canonical file of the
accepted parts, and only that reaches the decoder. The result is the picture that a person sees (docs/images.md).
"""

from server.images.decoder import DecodedImage, ImageDecoder, ImageLimits
from server.images.url import scheme_of

__all__ = ["DecodedImage", "ImageDecoder", "ImageLimits", "scheme_of"]
