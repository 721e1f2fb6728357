"""Pages as DashScope's clients ask for them: by number and size."""

from typing import Annotated

from pydantic import BaseModel, Field

from qianyan.server.owned import PageQuery

LARGEST_PAGE = 100
LAST_PAGE = 1_000_000


class PageParams(BaseModel):
    """The query of a list."""

    page_no: Annotated[int, Field(ge=1, le=LAST_PAGE)] = 1
    page_size: Annotated[int, Field(ge=1, le=LARGEST_PAGE)] = 10

    @property
    def page(self) -> PageQuery:
        """The page that is asked for."""
        return PageQuery(number=self.page_no, limit=self.page_size)
