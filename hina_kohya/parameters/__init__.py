"""Who a parameter is: from its name to its role, its module and its partners."""
