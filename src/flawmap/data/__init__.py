"""Reading data sets and decoding images; only `loader` and `augment` need torch."""

from flawmap.data.check import Finding, check_table, require_sound
from flawmap.data.detect import read_data
from flawmap.data.images import MAX_PIXELS, decode_image, read_image, to_rgb
from flawmap.data.inspect import Inspection, inspect
from flawmap.data.lister import Problem, UnreadableFilesError, list_images
from flawmap.data.masks import read_mask
from flawmap.data.samples import Reader, SampleTable
from flawmap.data.transform import Transform
from flawmap.data.verify import ImageFacts, Verification
from flawmap.data.verify import verify as verify_data

__all__ = [
    "MAX_PIXELS",
    "Finding",
    "ImageFacts",
    "Inspection",
    "Problem",
    "Reader",
    "SampleTable",
    "Transform",
    "UnreadableFilesError",
    "Verification",
    "check_table",
    "decode_image",
    "inspect",
    "list_images",
    "read_data",
    "read_image",
    "read_mask",
    "require_sound",
    "to_rgb",
    "verify_data",
]
