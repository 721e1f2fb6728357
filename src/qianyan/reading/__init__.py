"""What a vision-language model reads off pictures, pages, clips and screens, as plain values."""
